"""The Beam job: it composes the rooms below and owns no algorithm."""
