package oci

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io/fs"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// The user that programs run as unless they say otherwise. The number is the one that distroless images
// gave it and that most cluster policies know.
const (
	NonrootUser = "nonroot"
	NonrootUID  = 65532
	nonrootHome = "/home/nonroot"
)

// Certificates returns the certificate authorities that the web trusts, in the file in which most programs
// look first: /etc/ssl/certs/ca-certificates.crt. They are Mozilla's, in the version of
// golang.org/x/crypto/x509roots/fallback that is linked, in its order.
//
// Mozilla trusts some authorities only for certificates that were issued before a certain day. A PEM file
// cannot say so; these authorities are left out, as trusting them without the limit is what Mozilla
// decided against.
func Certificates() ([]Entry, error) {
	var pemFile bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&pemFile, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, err
		}
	}
	if pemFile.Len() == 0 {
		return nil, errors.New("the bundle of certificate authorities is empty")
	}
	return []Entry{{Path: "etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Data: pemFile.Bytes()}}, nil
}

// Accounts returns /etc/passwd, /etc/group and /etc/nsswitch.conf with the users root and nonroot, and
// nonroot's home. Nobody can log in as either: there is no shell to log in to.
func Accounts() []Entry {
	return []Entry{
		{Path: "etc/passwd", Mode: 0o644, Data: []byte(
			"root:x:0:0:root:/root:/sbin/nologin\n" +
				"nonroot:x:65532:65532:nonroot:" + nonrootHome + ":/sbin/nologin\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnonroot:x:65532:\n")},
		// Without it, C libraries ask DNS before /etc/hosts.
		{Path: "etc/nsswitch.conf", Mode: 0o644, Data: []byte("hosts: files dns\n")},
		{Path: nonrootHome, Mode: fs.ModeDir | 0o700, UID: NonrootUID, GID: NonrootUID},
	}
}

// Temp returns /tmp, where everyone may write and only the owner of a file may remove it.
func Temp() []Entry {
	return []Entry{{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777}}
}
