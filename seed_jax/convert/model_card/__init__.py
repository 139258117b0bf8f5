"""README.md of exported models and bundles, and the scripts that show how PyTorch loads an export."""
