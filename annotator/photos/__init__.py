"""Read and decode photos, and cut crops out of them."""
