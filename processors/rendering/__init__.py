"""Turns a template and an event into a document, in child processes that can be killed.

`pool` keeps the children, `child` is their program, `engines` what they render with, `confinement`
what is taken from them before they render.
"""
