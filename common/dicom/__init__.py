"""Radiographs, masks and generated images as DICOM objects."""
