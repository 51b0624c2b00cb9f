"""Settings: names, ranges, defaults, the order of property files, and the command line."""
