"""What the text models share: one ModelPT for all of them, and how their parts are found."""
