"""From YAML to checked sections: composing, schemas, and what their errors say."""
