"""Importers: one file per kind of source."""
