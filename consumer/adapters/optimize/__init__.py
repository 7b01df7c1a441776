"""Makers of variants: one file for each way of making one. `kinds` lists them and says which can be made here."""
