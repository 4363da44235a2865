"""Pydantic classes for the settings of a config file. This package never imports torch."""
