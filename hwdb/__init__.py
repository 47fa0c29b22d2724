"""What machines are: a catalogue of devices, and detection of this one. Knows nothing of models."""
