"""From blessed to served: a canary walks from unseen through shares of the users to champion, or is withdrawn."""
