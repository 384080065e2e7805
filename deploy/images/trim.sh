# Take from the base image what nothing at run time reads, and make it safe to run as nobody.
# Run by a plain sh, as root, in a stage that is flattened afterwards.
set -eu

# As process 1 a program hears no SIGTERM before it asks for it, so that a container that is stopped
# while it starts would hang until it is killed. tini passes signals on, and reaps the orphans.
# LightGBM and others compute by libgomp, which their packages expect of the system.
if ! command -v tini >/dev/null || ! ldconfig -p | grep -q 'libgomp\.so\.1'; then
  apt-get -qq update && apt-get -qq install --yes --no-install-recommends tini libgomp1 >/dev/null
fi

# Licences stay: /usr/share/doc/*/copyright.
find /usr/share/doc -type f ! -name copyright -delete
find /usr/share/doc -depth -type d -empty -delete
rm -rf /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian /usr/share/bash-completion \
  /var/lib/apt/lists /var/cache/apt /var/cache/debconf /var/cache/ldconfig /var/log /var/backups \
  /etc/apt/apt.conf.d/*proxy* /etc/machine-id
mkdir -p /var/log /var/cache/apt/archives/partial /var/lib/apt/lists/partial
# Tables of character sets for iconv(3), 9 MB: Python brings its own.
rm -rf /usr/lib/*/gconv

stdlib="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
for part in test idlelib tkinter turtledemo lib2to3 pydoc_data ensurepip; do rm -rf "${stdlib:?}/$part"; done
find "$stdlib" -maxdepth 1 -name 'config-*' -exec rm -rf {} +
# pip, and what comes along: nothing is installed at run time.
for site in "$stdlib/site-packages" /usr/local/lib/python3*/site-packages /usr/lib/python3/dist-packages; do
  for name in pip setuptools wheel pkg_resources _distutils_hack distutils-precedence.pth; do
    rm -rf "$site/$name" "$site/$name"-*.dist-info "$site/$name"-*.egg-info
  done
done
rm -rf /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/pydoc* /usr/local/bin/2to3* \
  /usr/local/bin/python*-config /usr/share/python-wheels
# Official images of Python come without byte code: every start would compile the library anew.
python3 -m compileall -q --invalidation-mode unchecked-hash "$stdlib" || true # one file is bad on purpose

# Nobody becomes root here.
find / -xdev -type f -perm /6000 -exec chmod a-s {} +

grep -q ':65532:' /etc/passwd || echo 'headrace:x:65532:65532:Headrace:/tmp:/usr/sbin/nologin' >>/etc/passwd
grep -q ':65532:' /etc/group || echo 'headrace:x:65532:' >>/etc/group
rm -rf /tmp/* /var/tmp/* /root/.cache
# A volume that is made here belongs to whom its folder belongs. Its group is root's, which has no
# rights here, for clusters that give each container a user of its own and that group.
mkdir -p /var/lib/headrace /var/lib/headrace-shared /models
chown 65532:0 /var/lib/headrace /var/lib/headrace-shared
chmod 0770 /var/lib/headrace
chmod 0775 /var/lib/headrace-shared
