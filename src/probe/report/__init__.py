"""Reports: one `Report` -> bytes, one file per format. Pure, and the only users of `probe.redact`."""
