"""Branches: which should exist, which do, and starting the missing ones."""
