"""From a config file to its recipe tree and the files that it leads to. Never imports torch."""
