# Only where the distribution is ours: with another one the engine stays as it was.
FILESEXTRAPATHS:prepend:hyperion := "${THISDIR}/files:"

# zstd is how the image of a slot is packed.
DEPENDS:append:hyperion = " zstd"

SRC_URI:append:hyperion = " file://hyperion.cfg"

# It is started when there is something to install, and listens to nobody.
SYSTEMD_AUTO_ENABLE:${PN}:hyperion = "disable"
