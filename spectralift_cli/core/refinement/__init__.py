"""Making a sharp cube agree with both images it stands for: see `posterior` for the derivation."""
