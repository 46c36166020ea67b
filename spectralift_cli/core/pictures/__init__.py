"""Pictures: quicklooks of cubes, maps and curves, in one style."""
