"""Toolchains: one file each."""
