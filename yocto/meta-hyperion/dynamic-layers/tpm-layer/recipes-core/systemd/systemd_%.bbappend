# systemd-creds seals in the TPM what the key of a node is encrypted with (hyperion-enrol). Only where the
# distribution is ours: with another one systemd stays as it was.
PACKAGECONFIG:append:hyperion = " openssl tpm2"
