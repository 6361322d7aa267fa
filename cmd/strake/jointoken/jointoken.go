// Package jointoken makes, lists and deletes the tokens with which machines
// join the cluster, and says with which command they do.
package jointoken

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"

	"github.com/strake-io/strake/kubelet/certificates"
)

// Usages of a token: it lets its bearer in, and cluster-info is signed with it.
var Usages = []string{"authentication", "signing"}

// extraGroup is what the API server takes: a group of bootstrappers.
var extraGroup = regexp.MustCompile(`^system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]$`)

// Token is a token as it is shown.
type Token struct {
	ID          string     `json:"id"`
	Token       string     `json:"token,omitempty"` // with the secret; only of one that was just made, or if asked for
	Expires     *time.Time `json:"expires,omitempty"`
	Usages      []string   `json:"usages,omitempty"`
	Groups      []string   `json:"groups,omitempty"`
	Description string     `json:"description,omitempty"`
	CAHash      string     `json:"caCertHash,omitempty"` // of the cluster's CA, as --ca-cert-hash wants it
	JoinCommand string     `json:"joinCommand,omitempty"`
}

// Request says what a new token is to be.
type Request struct {
	TTL         time.Duration // zero: without an end
	Usages      []string
	Groups      []string // beside system:bootstrappers
	Description string
}

func (r Request) check() error {
	if r.TTL < 0 {
		return fmt.Errorf("--ttl %s: a token can't have expired before it is made; 0 is without an end", r.TTL)
	}
	for _, u := range r.Usages {
		if !slices.Contains(Usages, u) {
			return fmt.Errorf("--usages %s: there are %s", u, strings.Join(Usages, " and "))
		}
	}
	for _, g := range r.Groups {
		if !extraGroup.MatchString(g) {
			return fmt.Errorf("--groups %s: not a group of bootstrappers, such as system:bootstrappers:rack-7", g)
		}
	}
	return nil
}

// Cluster is where tokens are made.
type Cluster struct {
	client kubernetes.Interface
	config *rest.Config
}

// Connect uses an administrator's kubeconfig.
func Connect(kubeconfig string) (*Cluster, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: tokens are made on a machine with a control plane (`strake up`), with its --data-dir", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return &Cluster{client: client, config: rc}, nil
}

const (
	namePrefix = "bootstrap-token-"
	letters    = "abcdefghijklmnopqrstuvwxyz0123456789"
)

func random(n int) (string, error) {
	out := make([]byte, n)
	for i := range out {
		v, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		out[i] = letters[v.Int64()]
	}
	return string(out), nil
}

// Create makes a token.
func (c *Cluster) Create(ctx context.Context, r Request, now time.Time) (Token, error) {
	if err := r.check(); err != nil {
		return Token{}, err
	}
	hash, err := c.caHash()
	if err != nil {
		return Token{}, err
	}
	for {
		id, err := random(6)
		if err != nil {
			return Token{}, err
		}
		secret, err := random(16)
		if err != nil {
			return Token{}, err
		}
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: namePrefix + id}, Type: corev1.SecretTypeBootstrapToken, Data: map[string][]byte{"token-id": []byte(id), "token-secret": []byte(secret)}}
		set := func(key, value string) {
			if value != "" {
				s.Data[key] = []byte(value)
			}
		}
		for _, u := range r.Usages {
			set("usage-bootstrap-"+u, "true")
		}
		set("auth-extra-groups", strings.Join(r.Groups, ","))
		set("description", r.Description)
		if r.TTL > 0 {
			set("expiration", now.Add(r.TTL).UTC().Format(time.RFC3339))
		}
		made, err := c.client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, s, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return Token{}, fmt.Errorf("token: %w", err)
		}
		t := read(made)
		t.Token, t.CAHash = id+"."+secret, hash
		t.JoinCommand = fmt.Sprintf("strake join %s --token %s --ca-cert-hash %s", c.config.Host, t.Token, hash)
		return t, nil
	}
}

// caHash is how a machine that joins knows the cluster's CA.
func (c *Cluster) caHash() (string, error) {
	ca := c.config.CAData
	if len(ca) == 0 {
		var err error
		if ca, err = os.ReadFile(c.config.CAFile); err != nil {
			return "", fmt.Errorf("CA of the cluster: %w", err)
		}
	}
	certs, err := certutil.ParseCertsPEM(ca)
	if err != nil {
		return "", fmt.Errorf("CA of the cluster: %w", err)
	}
	return certificates.CAHash(certs[0]), nil
}

func read(s *corev1.Secret) Token {
	t := Token{ID: string(s.Data["token-id"]), Description: string(s.Data["description"])}
	for _, u := range Usages {
		if string(s.Data["usage-bootstrap-"+u]) == "true" {
			t.Usages = append(t.Usages, u)
		}
	}
	if g := string(s.Data["auth-extra-groups"]); g != "" {
		t.Groups = strings.Split(g, ",")
	}
	if at, err := time.Parse(time.RFC3339, string(s.Data["expiration"])); err == nil {
		t.Expires = &at
	}
	return t
}

// List returns all tokens, by their ids. Secrets are in them only if they are asked for.
func (c *Cluster) List(ctx context.Context, secrets bool) ([]Token, error) {
	list, err := c.client.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("type", string(corev1.SecretTypeBootstrapToken)).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	tokens := []Token{}
	for i := range list.Items {
		t := read(&list.Items[i])
		if secrets {
			t.Token = t.ID + "." + string(list.Items[i].Data["token-secret"])
		}
		tokens = append(tokens, t)
	}
	slices.SortFunc(tokens, func(a, b Token) int { return cmp.Compare(a.ID, b.ID) })
	return tokens, nil
}

// Delete removes a token, which is named by its id or given whole.
func (c *Cluster) Delete(ctx context.Context, token string) error {
	id, _, _ := strings.Cut(token, ".")
	if !regexp.MustCompile(`^[a-z0-9]{6}$`).MatchString(id) {
		return errors.New("a token's id is six of a-z and 0-9: `strake token list` shows them")
	}
	err := c.client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, namePrefix+id, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no token %s", id)
	}
	if err != nil {
		return fmt.Errorf("token %s: %w", id, err)
	}
	return nil
}

// Print shows tokens to people.
func Print(w io.Writer, tokens []Token, now time.Time) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer tw.Flush()
	fmt.Fprintln(tw, "TOKEN\tEXPIRES IN\tUSAGES\tGROUPS\tDESCRIPTION")
	for _, t := range tokens {
		left := "never"
		if t.Expires != nil {
			left = "expired"
			if d := t.Expires.Sub(now); d > 0 {
				left = duration.HumanDuration(d)
			}
		}
		or := func(s string) string { return cmp.Or(s, "<none>") }
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", cmp.Or(t.Token, t.ID), left, or(strings.Join(t.Usages, ",")), or(strings.Join(t.Groups, ",")), or(t.Description))
	}
}
