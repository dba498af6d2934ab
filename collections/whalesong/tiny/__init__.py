"""Small pretrained parts made on the spot, in the very formats of the published ones."""
