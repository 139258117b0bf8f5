"""What a process sets before JAX is imported: backends, the persistent compilation cache, and huge pages."""
