"""What to download: files, mirrors, sizes, SHA-256 and licences of everything that others publish."""
