"""One module a verb of the command line: its arguments, and the glue between the parts that do the work."""
