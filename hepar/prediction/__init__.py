"""From a patient's scan to masks, measurements, a page and DICOM objects; and the comparison with an earlier scan."""
