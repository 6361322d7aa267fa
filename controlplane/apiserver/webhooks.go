package apiserver

import (
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	webhookinit "k8s.io/apiserver/pkg/admission/plugin/webhook/initializer"
	"k8s.io/apiserver/pkg/util/webhook"

	"github.com/strake-io/strake/controlplane/apiserver/quota"
)

// webhookInit tells the webhook plugins how Services are reached, and with which credentials.
type webhookInit struct {
	resolver webhook.ServiceResolver
	auth     webhook.AuthenticationInfoResolverWrapper
}

func (w webhookInit) Initialize(plugin admission.Interface) {
	if p, ok := plugin.(webhookinit.WantsServiceResolver); ok {
		p.SetServiceResolver(w.resolver)
	}
	if p, ok := plugin.(webhookinit.WantsAuthenticationInfoResolverWrapper); ok {
		p.SetAuthenticationInfoResolverWrapper(w.auth)
	}
}

// quotaInit tells the quota plugin how objects are measured.
type quotaInit struct{}

func (quotaInit) Initialize(plugin admission.Interface) {
	if p, ok := plugin.(initializer.WantsQuotaConfiguration); ok {
		p.SetQuotaConfiguration(quota.Configuration())
	}
}
