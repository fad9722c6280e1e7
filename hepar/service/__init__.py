"""Prediction as a service: an upload page with an API, and a listener that predicts what arrives in Orthanc."""
