package oci

import (
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

func TestCertificates(t *testing.T) {
	entries, err := Certificates()
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "etc/ssl/certs/ca-certificates.crt", entries[0].Path)
	require.Equal(t, fs.FileMode(0o644), entries[0].Mode)

	limited := map[string]bool{}
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			limited[string(root.Certificate)] = true
		}
	}
	count := 0
	for rest := entries[0].Data; len(rest) > 0; count++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		require.NotNil(t, block)
		certificate, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		require.True(t, certificate.IsCA)
		require.False(t, limited[string(block.Bytes)], "%s is trusted only within limits", certificate.Subject)
	}
	require.Greater(t, count, 100)
	t.Logf("%d authorities, %d left out", count, len(limited))

	// Programs find them: this is how crypto/x509 reads the file.
	require.True(t, x509.NewCertPool().AppendCertsFromPEM(entries[0].Data))
	again, err := Certificates()
	require.NoError(t, err)
	require.Equal(t, entries, again)
}

func TestAccountsAndTemp(t *testing.T) {
	byPath := map[string]Entry{}
	for _, e := range append(Accounts(), Temp()...) {
		byPath[e.Path] = e
	}
	require.Contains(t, string(byPath["etc/passwd"].Data), "\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")
	require.Contains(t, string(byPath["etc/group"].Data), "\nnonroot:x:65532:\n")
	require.Equal(t, "hosts: files dns\n", string(byPath["etc/nsswitch.conf"].Data))
	require.Equal(t, Entry{Path: "/home/nonroot", Mode: fs.ModeDir | 0o700, UID: 65532, GID: 65532}, byPath["/home/nonroot"])
	require.Equal(t, Entry{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777}, byPath["tmp"])
}

func TestTimeZones(t *testing.T) {
	all, err := TimeZones()
	require.NoError(t, err)
	require.Greater(t, len(all), 590)
	for _, e := range all {
		_, err := time.LoadLocationFromTZData(e.Path, e.Data)
		require.NoError(t, err, e.Path)
	}
	named, err := TimeZones("UTC", "Europe/Berlin", "UTC")
	require.NoError(t, err)
	require.Len(t, named, 2)
	require.Equal(t, "usr/share/zoneinfo/Europe/Berlin", named[0].Path)
	require.Equal(t, "usr/share/zoneinfo/UTC", named[1].Path)
	berlin, err := time.LoadLocationFromTZData("Europe/Berlin", named[0].Data)
	require.NoError(t, err)
	name, offset := time.Date(2024, 7, 1, 0, 0, 0, 0, berlin).Zone()
	require.Equal(t, "CEST", name)
	require.Equal(t, 7200, offset)
}

func TestUnknownTimeZone(t *testing.T) {
	for wrong, right := range map[string]string{
		"Europe/Berln":     "Europe/Berlin",
		"europe/berlin":    "Europe/Berlin",
		"Berlin":           "Europe/Berlin",
		"America/New York": "America/New_York",
		"Asia/Calcuta":     "Asia/Calcutta",
	} {
		_, err := TimeZones("UTC", wrong)
		require.ErrorContains(t, err, `there is no time zone "`+wrong+`"; the nearest names are `+right)
	}
	_, err := TimeZones("Nowhere/One", "Nowhere/Two")
	require.ErrorContains(t, err, "Nowhere/One")
	require.ErrorContains(t, err, "Nowhere/Two")
}
