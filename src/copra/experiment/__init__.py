"""Config file -> recipe tree -> result files and rule settings. This package never imports torch."""
