"""Convert DICOM files and unnamed images into a BIDS dataset."""
