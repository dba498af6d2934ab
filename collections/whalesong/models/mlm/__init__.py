"""mlm: the masked text model, which sees both sides and fills slots in any order."""
