"""Where a workspace runs: one folder per environment. Siblings never import each other."""
