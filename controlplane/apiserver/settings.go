package apiserver

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/server/options"
	cliflag "k8s.io/component-base/cli/flag"
)

// Settings are what kube-apiserver has flags of the same names for, and what no cluster needs to run. NewSettings makes
// them.
type Settings struct {
	// EtcdServers with their certificates are an etcd of somebody else's; empty: the cluster's own.
	EtcdServers                           []string
	EtcdCAFile, EtcdCertFile, EtcdKeyFile string
	EtcdPrefix                            string

	Audit *options.AuditOptions
	// EncryptionConfig is the file of an EncryptionConfiguration; empty: the store holds what it gets as it is.
	EncryptionConfig string
	EncryptionReload bool

	EnableAdmission, DisableAdmission []string
	AdmissionConfig                   string // file of an AdmissionConfiguration

	AuthenticationConfig string // file of an AuthenticationConfiguration
	TokenWebhookConfig   string // kubeconfig of a service that answers TokenReviews
	TokenWebhookTTL      time.Duration
	AuthorizationConfig  string // file of an AuthorizationConfiguration
	// AuthorizationModes say without such a file who decides, in this order; empty: Node, RBAC.
	AuthorizationModes  []string
	AuthorizationPolicy string // policy file of the mode ABAC

	// ShutdownDelay is how long the server goes on as before, but for /readyz, once it has been told to end.
	ShutdownDelay time.Duration
	// ShutdownWatchGrace is how long the server takes at most to end watches, one after the other; with 0 it waits until their clients
	// end them, or for RequestTimeout.
	ShutdownWatchGrace  time.Duration
	MaxRequestsInflight int
	MaxMutatingInflight int
	RequestTimeout      time.Duration
	EnableProfiling     bool
	// FeatureGates switches features of the API libraries, such as CBORServingAndStorage, on and off, for the whole process.
	FeatureGates map[string]bool
	GoawayChance float64

	flags *pflag.FlagSet // where AddFlags added them
}

// NewSettings returns the settings of a server that has none.
func NewSettings() *Settings {
	limits := options.NewServerRunOptions()
	return &Settings{
		EtcdPrefix: storagePrefix, Audit: options.NewAuditOptions(), TokenWebhookTTL: 2 * time.Minute, RequestTimeout: time.Minute, ShutdownWatchGrace: 5 * time.Second, EnableProfiling: true,
		MaxRequestsInflight: limits.MaxRequestsInFlight, MaxMutatingInflight: limits.MaxMutatingRequestsInFlight,
	}
}

// AddFlags adds the flags by kube-apiserver's names. /flagz shows all flags of their set.
func (s *Settings) AddFlags(fs *pflag.FlagSet) {
	s.flags = fs
	fs.StringSliceVar(&s.EtcdServers, "etcd-servers", nil, "an etcd in place of the cluster's own: its servers' URLs")
	fs.StringVar(&s.EtcdCAFile, "etcd-cafile", "", "CA of the etcd servers")
	fs.StringVar(&s.EtcdCertFile, "etcd-certfile", "", "certificate for the etcd servers")
	fs.StringVar(&s.EtcdKeyFile, "etcd-keyfile", "", "key of that certificate")
	fs.StringVar(&s.EtcdPrefix, "etcd-prefix", s.EtcdPrefix, "prefix of all keys")
	fs.StringVar(&s.EncryptionConfig, "encryption-provider-config", "", "file that says how what is stored is encrypted (EncryptionConfiguration)")
	fs.BoolVar(&s.EncryptionReload, "encryption-provider-config-automatic-reload", false, "follow changes of that file")
	fs.StringSliceVar(&s.EnableAdmission, "enable-admission-plugins", nil, "admission plugins that are off by default and shall run")
	fs.StringSliceVar(&s.DisableAdmission, "disable-admission-plugins", nil, "admission plugins that are on by default and shall not run")
	fs.StringVar(&s.AdmissionConfig, "admission-control-config-file", "", "file with the configuration of admission plugins (AdmissionConfiguration)")
	fs.StringVar(&s.AuthenticationConfig, "authentication-config", "", "file that says whose OIDC tokens count and who is anonymous (AuthenticationConfiguration)")
	fs.StringVar(&s.TokenWebhookConfig, "authentication-token-webhook-config-file", "", "kubeconfig of a service that knows tokens")
	fs.DurationVar(&s.TokenWebhookTTL, "authentication-token-webhook-cache-ttl", s.TokenWebhookTTL, "how long its answers hold")
	fs.StringVar(&s.AuthorizationConfig, "authorization-config", "", "file that says who decides what users may do, in which order (AuthorizationConfiguration); default: Node, RBAC")
	fs.StringSliceVar(&s.AuthorizationModes, "authorization-mode", nil, "without --authorization-config: who decides what users may do, in this order, of Node, RBAC, ABAC, AlwaysAllow, AlwaysDeny; default: Node,RBAC")
	fs.StringVar(&s.AuthorizationPolicy, "authorization-policy-file", "", "policies of the mode ABAC, one in a line (abac.authorization.kubernetes.io/v1beta1)")
	fs.DurationVar(&s.ShutdownDelay, "shutdown-delay-duration", 0, "how long the server still takes new requests while /readyz tells load balancers that it ends")
	fs.DurationVar(&s.ShutdownWatchGrace, "shutdown-watch-termination-grace-period", s.ShutdownWatchGrace, "how long the server takes at most to end watches one after the other, so that not all clients come again at once")
	fs.IntVar(&s.MaxRequestsInflight, "max-requests-inflight", s.MaxRequestsInflight, "with --max-mutating-requests-inflight: how many requests are served at a time, shared out by priority and fairness")
	fs.IntVar(&s.MaxMutatingInflight, "max-mutating-requests-inflight", s.MaxMutatingInflight, "see --max-requests-inflight")
	fs.DurationVar(&s.RequestTimeout, "request-timeout", s.RequestTimeout, "after which a request that is no watch is given up")
	fs.BoolVar(&s.EnableProfiling, "profiling", s.EnableProfiling, "serve /debug/pprof")
	fs.Float64Var(&s.GoawayChance, "goaway-chance", 0, "share of requests (at most 0.02) whose client is asked to connect anew, so that clients spread over servers")
	fs.Var(cliflag.NewMapStringBool(&s.FeatureGates), "feature-gates", "features of the API server to switch on or off, such as CBORServingAndStorage=true")
	s.Audit.AddFlags(fs)
}

// Check tells what can't be right before anything starts.
func (s *Settings) Check() error {
	errs := s.Audit.Validate()
	if s.EncryptionReload && s.EncryptionConfig == "" {
		errs = append(errs, fmt.Errorf("--encryption-provider-config-automatic-reload needs --encryption-provider-config"))
	}
	if s.AuthorizationConfig != "" && len(s.AuthorizationModes) > 0 {
		errs = append(errs, fmt.Errorf("--authorization-mode and --authorization-config exclude each other"))
	}
	if s.AuthorizationConfig == "" && slices.Contains(s.AuthorizationModes, "ABAC") != (s.AuthorizationPolicy != "") {
		errs = append(errs, fmt.Errorf("--authorization-mode=ABAC and --authorization-policy-file need each other"))
	}
	if s.GoawayChance < 0 || s.GoawayChance > 0.02 {
		errs = append(errs, fmt.Errorf("--goaway-chance must be from 0 to 0.02"))
	}
	if s.ShutdownDelay < 0 || s.ShutdownWatchGrace < 0 || s.RequestTimeout <= 0 {
		errs = append(errs, fmt.Errorf("--shutdown-delay-duration, --shutdown-watch-termination-grace-period and --request-timeout can't be negative"))
	}
	if len(s.EtcdServers) == 0 && (s.EtcdCAFile != "" || s.EtcdCertFile != "" || s.EtcdKeyFile != "") {
		errs = append(errs, fmt.Errorf("--etcd-cafile, --etcd-certfile and --etcd-keyfile need --etcd-servers"))
	}
	return utilerrors.NewAggregate(errs)
}
