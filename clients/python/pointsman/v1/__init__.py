"""Generated stubs of protos/pointsman/v1; never edited by hand (make protos)."""
