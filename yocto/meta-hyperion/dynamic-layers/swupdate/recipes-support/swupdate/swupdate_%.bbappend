# Only where the distribution is ours: with another one the engine stays as it was.
FILESEXTRAPATHS:prepend:hyperion := "${THISDIR}/files:"
SRC_URI:append:hyperion = " file://hyperion.cfg"
