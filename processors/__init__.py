"""Code that performs deliveries, and the broker that carries them to it.

A regular package on purpose: a namespace package would give way to any folder named `processors`.
"""
