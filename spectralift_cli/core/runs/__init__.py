"""Whole runs: the config, its stages, their receipts, and the folder that appears when all is done."""
