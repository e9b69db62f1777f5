"""The store: everything that speaks to PostgreSQL. No other part of the program does."""
