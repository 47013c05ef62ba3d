package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// lifetime of certificates: longer than any test.
const lifetime = 10 * 365 * 24 * time.Hour

// keys are the paths of what the API server and its administrator prove themselves with.
type keys struct {
	caCert, servingCert, servingKey, adminCert, adminKey, accountKey string
}

// ensureKeys makes them in a folder, or finds those that an earlier start made.
func ensureKeys(dir string) (*keys, error) {
	in := func(name string) string { return filepath.Join(dir, name) }
	keys := &keys{
		caCert:      in("ca.crt"),
		servingCert: in("serving.crt"),
		servingKey:  in("serving.key"),
		adminCert:   in("admin.crt"),
		adminKey:    in("admin.key"),
		accountKey:  in("account.key"),
	}
	// Written last.
	if _, err := os.Stat(keys.caCert); err == nil {
		return keys, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	serving := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "apiserver"},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 96, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	admin := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := ca.issue(serving, keys.servingCert, keys.servingKey); err != nil {
		return nil, err
	}
	if err := ca.issue(admin, keys.adminCert, keys.adminKey); err != nil {
		return nil, err
	}
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := writeKey(keys.accountKey, account); err != nil {
		return nil, err
	}
	return keys, writePEM(keys.caCert, "CERTIFICATE", ca.cert.Raw)
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "hyperion-test-ca"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	if err := number(template); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

func (ca *authority) issue(template *x509.Certificate, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if err := number(template); err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return err
	}
	if err := writeKey(keyFile, key); err != nil {
		return err
	}
	return writePEM(certFile, "CERTIFICATE", der)
}

// number sets what every certificate needs.
func number(template *x509.Certificate) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template.SerialNumber = serial
	// Clocks of test machines jump.
	template.NotBefore = time.Now().Add(-24 * time.Hour)
	template.NotAfter = time.Now().Add(lifetime)
	return nil
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(file, "EC PRIVATE KEY", der)
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// writeKubeconfig writes the administrator's, with everything in it.
func (k *keys) writeKubeconfig(file string, port int) error {
	config := api.NewConfig()
	cluster, user := api.NewCluster(), api.NewAuthInfo()
	cluster.Server = "https://127.0.0.1:" + strconv.Itoa(port)
	for path, into := range map[string]*[]byte{
		k.caCert:    &cluster.CertificateAuthorityData,
		k.adminCert: &user.ClientCertificateData,
		k.adminKey:  &user.ClientKeyData,
	} {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		*into = content
	}
	const name = "hyperion-test"
	config.Clusters[name] = cluster
	config.AuthInfos[name] = user
	context := api.NewContext()
	context.Cluster, context.AuthInfo = name, name
	config.Contexts[name] = context
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, file)
}
