"""What models are: tensors, caches, formats, schemes, a catalogue,
and readers of files. Knows nothing of machines."""
