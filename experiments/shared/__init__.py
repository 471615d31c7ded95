"""Code that several tasks share: sets of images, models around a core, distances."""
