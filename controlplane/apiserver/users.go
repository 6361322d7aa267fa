package apiserver

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	apiserverapi "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	unionauthz "k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	authenticationconfigmetrics "k8s.io/apiserver/pkg/server/options/authenticationconfig/metrics"
	authorizationconfigmetrics "k8s.io/apiserver/pkg/server/options/authorizationconfig/metrics"

	"github.com/strake-io/strake/controlplane/apiserver/auth"
	"github.com/strake-io/strake/controlplane/apiserver/auth/abac"
	"github.com/strake-io/strake/controlplane/apiserver/auth/bootstrap"
	"github.com/strake-io/strake/controlplane/apiserver/auth/node"
	"github.com/strake-io/strake/controlplane/apiserver/auth/rbac"
	"github.com/strake-io/strake/controlplane/apiserver/auth/token"
)

// anonymousPaths are open to everybody: load balancers and probes have no credentials, and who joins the cluster learns its
// CA first.
var anonymousPaths = []string{"/healthz", "/livez", "/readyz", "/version", "/api/v1/namespaces/kube-public/configmaps/cluster-info"}

// tokenCacheTTL bounds how long a token works on after what it is bound to is gone.
const tokenCacheTTL = 10 * time.Second

// buildAuth says who requests are from, and what they may do.
func (b *builder) buildAuth() error {
	ctx, cancel := context.WithCancel(context.Background())
	b.destroy = append(b.destroy, cancel)
	if err := b.buildAuthentication(ctx); err != nil {
		return err
	}
	return b.buildAuthorization(ctx)
}

func (b *builder) buildAuthentication(ctx context.Context) error {
	core := b.informers.Core().V1()
	var err error
	audiences := authenticator.Audiences{b.cfg.ServiceAccountIssuer}
	b.issuer, err = token.NewIssuer(b.cfg.ServiceAccountKeyFile, b.cfg.ServiceAccountIssuer, audiences, token.Objects{
		ServiceAccounts: core.ServiceAccounts().Lister(), Pods: core.Pods().Lister(), Secrets: core.Secrets().Lister(), Nodes: core.Nodes().Lister(),
		Live: b.client.CoreV1(),
	})
	if err != nil {
		return err
	}
	clientCA, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", b.cfg.ClientCAFile)
	if err != nil {
		return err
	}
	proxyCA, err := dynamiccertificates.NewDynamicCAContentFromFile("front-proxy-ca", b.cfg.FrontProxyCAFile)
	if err != nil {
		return err
	}
	header := &authenticatorfactory.RequestHeaderConfig{
		UsernameHeaders: headerrequest.StaticStringSlice{"X-Remote-User"}, UIDHeaders: headerrequest.StaticStringSlice{"X-Remote-Uid"},
		GroupHeaders: headerrequest.StaticStringSlice{"X-Remote-Group"}, ExtraHeaderPrefixes: headerrequest.StaticStringSlice{"X-Remote-Extra-"},
		CAContentProvider: proxyCA, AllowedClientNames: headerrequest.StaticStringSlice{"front-proxy-client"},
	}
	a := &b.generic.Authentication
	a.APIAudiences = audiences
	a.RequestHeaderConfig = header
	for _, ca := range []dynamiccertificates.CAContentProvider{clientCA, proxyCA} {
		if err := a.ApplyClientCert(ca, b.generic.SecureServing); err != nil {
			return err
		}
	}
	tokens, err := b.tokens(audiences)
	if err != nil {
		return err
	}
	with := func(conf *apiserverapi.AuthenticationConfiguration, others []authenticator.Token) authenticator.Request {
		return auth.New(auth.Config{
			ClientCA: clientCA, FrontProxy: header, Tokens: tokenunion.New(append(tokens, others...)...), Anonymous: conf.Anonymous,
			TokenTTL: tokenCacheTTL, Audiences: audiences, AnonymousPaths: anonymousPaths,
		})
	}
	if b.cfg.Settings.AuthenticationConfig == "" {
		a.Authenticator = with(&apiserverapi.AuthenticationConfiguration{}, nil)
		return nil
	}
	authenticationconfigmetrics.RegisterMetrics()
	id := b.generic.APIServerID
	file := &auth.File[authenticator.Request]{
		Path: b.cfg.Settings.AuthenticationConfig,
		Build: func(ctx context.Context, content []byte) (built auth.Built[authenticator.Request], err error) {
			conf, err := auth.ReadAuthentication(content, b.cfg.ServiceAccountIssuer)
			if err != nil {
				return built, err
			}
			others, ready, err := auth.OIDC(ctx, conf, b.cfg.ServiceAccountIssuer, audiences)
			return auth.Built[authenticator.Request]{Value: with(conf, others), Ready: ready}, err
		},
		Loaded: func(content string, first bool) {
			if first {
				authenticationconfigmetrics.RecordAuthenticationConfigLastConfigInfo(id, content)
			} else {
				authenticationconfigmetrics.RecordAuthenticationConfigAutomaticReloadSuccess(id, content)
			}
		},
		Failed: func() { authenticationconfigmetrics.RecordAuthenticationConfigAutomaticReloadFailure(id) },
	}
	if err := file.Load(ctx); err != nil {
		return err
	}
	go file.Follow(ctx)
	a.Authenticator = auth.FollowedAuthenticator{File: file}
	return nil
}

// tokens knows tokens of ServiceAccounts, of machines that join, and of the webhook that the settings name.
func (b *builder) tokens(audiences authenticator.Audiences) ([]authenticator.Token, error) {
	joining := bootstrap.New(b.informers.Core().V1().Secrets().Lister().Secrets(metav1.NamespaceSystem))
	all := []authenticator.Token{b.issuer, authenticator.WrapAudienceAgnosticToken(audiences, joining)}
	if path := b.cfg.Settings.TokenWebhookConfig; path != "" {
		asked, err := auth.TokenWebhook(path, b.cfg.Settings.TokenWebhookTTL, audiences)
		if err != nil {
			return nil, err
		}
		all = append(all, asked)
	}
	return all[:len(all):len(all)], nil // who appends makes a list of its own
}

func (b *builder) buildAuthorization(ctx context.Context) error {
	roles := b.informers.Rbac().V1()
	b.rbac = &rbac.Authorizer{
		Roles: roles.Roles().Lister(), RoleBindings: roles.RoleBindings().Lister(),
		ClusterRoles: roles.ClusterRoles().Lister(), ClusterRoleBindings: roles.ClusterRoleBindings().Lister(),
	}
	nodes, err := node.New(b.informers.Core().V1().Pods().Informer(), rbac.NodeRules(), b.boundPods, b.volume)
	if err != nil {
		return err
	}
	ours, rules := map[string]authorizer.Authorizer{"Node": nodes, "RBAC": b.rbac}, []authorizer.RuleResolver{b.rbac}
	set := b.cfg.Settings
	if set.AuthorizationPolicy != "" {
		content, err := os.ReadFile(set.AuthorizationPolicy)
		if err != nil {
			return fmt.Errorf("authorization policy: %w", err)
		}
		policies, err := abac.Parse(content)
		if err != nil {
			return fmt.Errorf("authorization policy %s: %w", set.AuthorizationPolicy, err)
		}
		ours["ABAC"], rules = policies, append(rules, policies)
	}
	modes := auth.NewModes(ours)
	var decider authorizer.Authorizer
	if set.AuthorizationConfig != "" {
		decider, err = b.configuredAuthorizer(ctx, set.AuthorizationConfig, modes)
	} else {
		names := set.AuthorizationModes
		if len(names) == 0 {
			names = []string{"Node", "RBAC"}
		}
		decider, err = modes.Ordered(names)
	}
	if err != nil {
		return err
	}
	privileged := unionauthz.NamedAuthorizer{AuthorizerName: "privileged", Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup)}
	b.generic.Authorization.Authorizer, err = unionauthz.New(privileged, unionauthz.NamedAuthorizer{AuthorizerName: "configured", Authorizer: decider})
	b.generic.RuleResolver = unionauthz.NewRuleResolvers(rules...)
	return err
}

// configuredAuthorizer asks who the file names, in its order, and follows the file.
func (b *builder) configuredAuthorizer(ctx context.Context, path string, modes auth.Modes) (authorizer.Authorizer, error) {
	authorizationconfigmetrics.RegisterMetrics()
	id := b.generic.APIServerID
	file := &auth.File[authorizer.Authorizer]{
		Path: path,
		Build: func(_ context.Context, content []byte) (auth.Built[authorizer.Authorizer], error) {
			all, err := modes.Configured(content)
			return auth.Built[authorizer.Authorizer]{Value: all}, err
		},
		Loaded: func(content string, first bool) {
			if first {
				authorizationconfigmetrics.RecordAuthorizationConfigLastConfigInfo(id, content)
			} else {
				authorizationconfigmetrics.RecordAuthorizationConfigAutomaticReloadSuccess(id, content)
			}
		},
		Failed: func() { authorizationconfigmetrics.RecordAuthorizationConfigAutomaticReloadFailure(id) },
	}
	if err := file.Load(ctx); err != nil {
		return nil, err
	}
	go file.Follow(ctx)
	return auth.FollowedAuthorizer{File: file}, nil
}

// boundPods lists a node's pods from the watch cache, which is what the node's kubelet learnt of them from.
func (b *builder) boundPods(ctx context.Context, node string) ([]corev1.Pod, error) {
	list, err := b.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(), ResourceVersion: "0",
	})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// volume reads a PersistentVolume for the authorizer of nodes.
func (b *builder) volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	return b.client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
}
