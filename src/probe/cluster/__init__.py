"""The gate's controller: runs on one machine, reaches all others."""
