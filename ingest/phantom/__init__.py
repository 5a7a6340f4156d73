"""Synthetic AI-READI-shaped cohorts: retina-like pixels in real DICOM files, good and damaged."""
