"""The settings of a config file, as pydantic classes. Never imports torch."""
