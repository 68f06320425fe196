"""One figure of every study a module: its name is the file's, its `draw` makes it of a `Collected`."""
