"""The toolkit itself: silent, importable, without a command line."""
