package certificates

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/keyutil"
)

// Bootstrap makes sure that the node has both its client certificates and its kubeconfigs. With the files of an earlier
// Bootstrap it asks nobody. It repeats what fails because the API server is away until ctx ends; a wrong hash, an
// unknown or expired token and a wrong clock are errors at once.
func Bootstrap(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("certificates of the node: %w", err)
	}
	if cfg.Sign != nil {
		if err := cfg.signAll(); err != nil {
			return err
		}
		return cfg.writeKubeconfigs()
	}
	if err := cfg.ensureCA(ctx); err != nil {
		return err
	}
	for _, step := range []struct {
		identity
		client func() (*rest.Config, error)
	}{{cfg.kubelet(), cfg.withToken}, {cfg.network(), cfg.withKubelet}} {
		store, err := openStore(cfg.Dir, step.name)
		if err != nil {
			return err
		}
		if err := usable(store, step.identity, time.Now()); err == nil {
			continue
		} else if step.name == kubeletClient && cfg.Token == "" {
			return fmt.Errorf("%w; join the cluster with a token from `strake token create`", err)
		}
		client, err := step.client()
		if err != nil {
			return err
		}
		if err := retry(ctx, func(ctx context.Context) error { return obtain(ctx, cfg, client, store, step.identity) }); err != nil {
			return fmt.Errorf("certificate of %s: %w", step.subject.CommonName, err)
		}
	}
	return cfg.writeKubeconfigs()
}

// signAll makes what is missing or no longer good with the CA at hand.
func (c Config) signAll() error {
	now := time.Now()
	for _, id := range []identity{c.kubelet(), c.network(), c.server()} {
		store, err := openStore(c.Dir, id.name)
		if err != nil {
			return err
		}
		r := &x509.CertificateRequest{Subject: id.subject}
		if id.name == kubeletServer {
			r = c.serverTemplate()
		}
		if have, err := store.Current(); err == nil && check(have, id, now) == nil && c.issued(have.Leaf) && names(have.Leaf, r) {
			continue
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", id.subject.CommonName, err)
		}
		keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", id.subject.CommonName, err)
		}
		r.PublicKey = key.Public()
		certPEM, err := c.Sign(r, id.usages)
		if err == nil {
			_, err = store.Update(certPEM, keyPEM)
		}
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", id.subject.CommonName, err)
		}
	}
	return nil
}

// issued tells whether a certificate is of the CA in CAFile: a cluster that was made anew has another.
func (c Config) issued(leaf *x509.Certificate) bool {
	certs, err := certutil.CertsFromFile(c.CAFile)
	return err == nil && leaf.CheckSignatureFrom(certs[0]) == nil
}

// names tells whether a certificate has all names and addresses of a request.
func names(leaf *x509.Certificate, r *x509.CertificateRequest) bool {
	for _, name := range r.DNSNames {
		if leaf.VerifyHostname(name) != nil {
			return false
		}
	}
	for _, ip := range r.IPAddresses {
		if leaf.VerifyHostname(ip.String()) != nil {
			return false
		}
	}
	return true
}

// ensureCA keeps the cluster's CA, or gets it from the API server.
func (c Config) ensureCA(ctx context.Context) error {
	certs, err := certutil.CertsFromFile(c.CAFile)
	if err == nil {
		if len(c.CAHashes) > 0 && len(believed(certs, c.CAHashes)) == 0 {
			return fmt.Errorf("the CA in %s is that of another cluster than the hash says; remove the data of the old one first (`strake down --purge`)", c.CAFile)
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("CA of the cluster: %w", err)
	}
	if len(c.CAHashes) == 0 {
		return fmt.Errorf("there is no CA in %s and no hash of one: join with the whole command that `strake token create --print-join-command` prints", c.CAFile)
	}
	for _, h := range c.CAHashes {
		if !hashForm.MatchString(h) {
			return fmt.Errorf("the CA's hash %q is not sha256: and 64 hex digits", h)
		}
	}
	var ca []byte
	err = retry(ctx, func(ctx context.Context) error {
		var err error
		ca, err = discover(ctx, c.Server, c.CAHashes, time.Now())
		return err
	})
	if err != nil {
		return fmt.Errorf("API server %s: %w", c.Server, err)
	}
	return writeFile(c.CAFile, ca, 0o644)
}

func (c Config) withToken() (*rest.Config, error) {
	if _, _, err := ParseToken(c.Token); err != nil {
		return nil, err
	}
	return &rest.Config{Host: c.Server, BearerToken: c.Token, TLSClientConfig: rest.TLSClientConfig{CAFile: c.CAFile}, Timeout: callTimeout}, nil
}

func (c Config) withKubelet() (*rest.Config, error) {
	path := currentPath(c.Dir, kubeletClient)
	return &rest.Config{Host: c.Server, TLSClientConfig: rest.TLSClientConfig{CAFile: c.CAFile, CertFile: path, KeyFile: path}}, nil
}

// usable tells what is wrong with the certificate in a store, if anything is.
func usable(store certificate.Store, id identity, now time.Time) error {
	c, err := store.Current()
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", id.subject.CommonName, err)
	}
	return check(c, id, now)
}

func check(c *tls.Certificate, id identity, now time.Time) error {
	switch {
	case c.Leaf.Subject.CommonName != id.subject.CommonName:
		return fmt.Errorf("certificate of %s: the one that is there is of %s", id.subject.CommonName, c.Leaf.Subject.CommonName)
	case now.After(c.Leaf.NotAfter):
		return fmt.Errorf("certificate of %s: it expired on %s (the clock of this machine says %s)", id.subject.CommonName, c.Leaf.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
	case now.Before(c.Leaf.NotBefore):
		return fmt.Errorf("certificate of %s: it is good from %s on, but the clock of this machine says %s: set the clock", id.subject.CommonName, c.Leaf.NotBefore.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return nil
}

// permanent marks an error that no repetition cures.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

const (
	// callTimeout bounds a call to the API server while joining.
	callTimeout = 30 * time.Second
	// patience is how long a refusal may be old news: caches of the API server learn of a new token a moment later.
	patience = 2 * time.Second
)

// retry repeats f until it succeeds, it fails for good, or ctx ends.
func retry(ctx context.Context, f func(context.Context) error) error {
	pause := 100 * time.Millisecond
	var refused time.Time
	for {
		err := f(ctx)
		var lasting permanent
		switch {
		case err == nil:
			return nil
		case errors.As(err, &lasting):
			return err
		case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
			if refused.IsZero() {
				refused = time.Now()
			}
			if time.Since(refused) > patience {
				return explain(err)
			}
		default:
			refused = time.Time{}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), explain(err))
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// explain says what to do about a refusal.
func explain(err error) error {
	var invalid x509.CertificateInvalidError
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server does not know the token, or it has expired: make a new one with `strake token create` (%w)", err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("the token does not let one join: it needs the usage \"authentication\" (%w)", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return clockError(err, time.Now())
	}
	return err
}

func clockError(err error, now time.Time) error {
	return permanent{fmt.Errorf("the API server's certificate is not good now; if the clock of this machine, which says %s, is wrong, set it (%w)", now.Format(time.RFC3339), err)}
}

func newClient(c *rest.Config) (kubernetes.Interface, error) {
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return nil, permanent{fmt.Errorf("API server %s: %w", c.Host, err)}
	}
	return client, nil
}
