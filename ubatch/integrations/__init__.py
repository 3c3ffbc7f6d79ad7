"""What connects uBatch with other projects. Each module needs its own extra, and the core imports none of them."""
