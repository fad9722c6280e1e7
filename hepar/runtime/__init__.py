"""What every process needs: artifacts, progress, the device and its threads, chunked arrays."""
