package autoscaler

import (
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/utils/ptr"
)

// downWindow is for how long an autoscaler that says nothing of it keeps what was wanted before.
const downWindow = 300 // seconds

// usual are the rules of an autoscaler without behavior ("Default behavior").
var usual = autoscalingv2.HorizontalPodAutoscalerBehavior{
	ScaleUp: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](0), SelectPolicy: ptr.To(autoscalingv2.MaxChangePolicySelect), Policies: []autoscalingv2.HPAScalingPolicy{
		{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}, {Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
	}},
	ScaleDown: &autoscalingv2.HPAScalingRules{SelectPolicy: ptr.To(autoscalingv2.MaxChangePolicySelect), Policies: []autoscalingv2.HPAScalingPolicy{
		{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
	}},
}

func behaviorOf(h *autoscalingv2.HorizontalPodAutoscaler) autoscalingv2.HorizontalPodAutoscalerBehavior {
	b := usual
	if h.Spec.Behavior != nil {
		if h.Spec.Behavior.ScaleUp != nil {
			b.ScaleUp = h.Spec.Behavior.ScaleUp
		}
		if h.Spec.Behavior.ScaleDown != nil {
			b.ScaleDown = h.Spec.Behavior.ScaleDown
		}
	}
	return b
}

// tolerancesOf are the autoscaler's own, or the usual ones.
func tolerancesOf(b autoscalingv2.HorizontalPodAutoscalerBehavior) tolerances {
	of := func(r *autoscalingv2.HPAScalingRules) float64 {
		if r.Tolerance != nil {
			return r.Tolerance.AsApproximateFloat64()
		}
		return tolerance
	}
	return tolerances{down: of(b.ScaleDown), up: of(b.ScaleUp)}
}

// past is what an autoscaler wanted and did.
type past struct {
	wanted  []dated // replicas
	changes []dated // by how many, more or fewer
}

type dated struct {
	n  int32
	at time.Time
}

// limited says that something kept the number from being what was wanted, and the words for it.
type limited struct{ reason, message string }

var withinRange = limited{"DesiredWithinRange", "the desired count is within the acceptable range"}

// stabilize holds a wish against those of the rules' windows: there are no more pods than any of the way up wanted, no fewer than any of the way down.
func (p *past) stabilize(current, desired int32, b autoscalingv2.HorizontalPodAutoscalerBehavior, now time.Time) (int32, limited) {
	up, down := desired, desired
	upFrom := now.Add(-time.Duration(ptr.Deref(b.ScaleUp.StabilizationWindowSeconds, 0)) * time.Second)
	downFrom := now.Add(-time.Duration(ptr.Deref(b.ScaleDown.StabilizationWindowSeconds, downWindow)) * time.Second)
	kept := p.wanted[:0]
	for _, w := range p.wanted {
		if w.at.After(upFrom) {
			up = min(up, w.n)
		}
		if w.at.After(downFrom) {
			down = max(down, w.n)
		}
		if w.at.After(upFrom) || w.at.After(downFrom) {
			kept = append(kept, w)
		}
	}
	p.wanted = append(kept, dated{desired, now})
	n := current
	if n < up {
		n = up
	}
	if n > down {
		n = down
	}
	switch {
	case n == desired:
		return n, limited{"ReadyForNewScale", "recommended size matches current size"}
	case n < desired:
		return n, limited{"ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation"}
	}
	return n, limited{"ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation"}
}

// changed notes a change, and forgets those that no policy looks at any more.
func (p *past) changed(by int32, b autoscalingv2.HorizontalPodAutoscalerBehavior, now time.Time) {
	longest := int32(0)
	for _, r := range []*autoscalingv2.HPAScalingRules{b.ScaleUp, b.ScaleDown} {
		for _, policy := range r.Policies {
			longest = max(longest, policy.PeriodSeconds)
		}
	}
	kept := p.changes[:0]
	for _, c := range p.changes {
		if c.at.After(now.Add(-time.Duration(longest) * time.Second)) {
			kept = append(kept, c)
		}
	}
	p.changes = append(kept, dated{by, now})
}

// since is how many pods there were before a period, by what changed in it.
func (p *past) since(current, seconds int32, now time.Time) int32 {
	for _, c := range p.changes {
		if c.at.After(now.Add(-time.Duration(seconds) * time.Second)) {
			current -= c.n
		}
	}
	return current
}

// limit keeps a wish within the autoscaler's range, and within what its policies allow at a time.
func (p *past) limit(current, desired, least, most int32, b autoscalingv2.HorizontalPodAutoscalerBehavior, now time.Time) (int32, limited) {
	tooMany := limited{"TooManyReplicas", "the desired replica count is more than the maximum replica count"}
	tooFew := limited{"TooFewReplicas", "the desired replica count is less than the minimum replica count"}
	switch {
	case desired > current:
		allowed, why := most, tooMany
		if n := p.upTo(current, b.ScaleUp, now); n < most {
			allowed, why = n, limited{"ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"}
		}
		if desired > allowed {
			return allowed, why
		}
	case desired < current:
		allowed, why := least, tooFew
		if n := p.downTo(current, b.ScaleDown, now); n > least {
			allowed, why = n, limited{"ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"}
		}
		if desired < allowed {
			return allowed, why
		}
	}
	if desired > most {
		return most, tooMany
	}
	if desired < least {
		return least, tooFew
	}
	return desired, withinRange
}

func (p *past) upTo(current int32, r *autoscalingv2.HPAScalingRules, now time.Time) int32 {
	return p.choose(current, r, now, func(before int32, policy autoscalingv2.HPAScalingPolicy) int32 {
		if policy.Type == autoscalingv2.PodsScalingPolicy {
			return before + policy.Value
		}
		return int32(math.Ceil(float64(before) * (1 + float64(policy.Value)/100)))
	}, func(n int32) int32 { return max(n, current) }, 1)
}

func (p *past) downTo(current int32, r *autoscalingv2.HPAScalingRules, now time.Time) int32 {
	return p.choose(current, r, now, func(before int32, policy autoscalingv2.HPAScalingPolicy) int32 {
		if policy.Type == autoscalingv2.PodsScalingPolicy {
			return before - policy.Value
		}
		return int32(float64(before) * (1 - float64(policy.Value)/100))
	}, func(n int32) int32 { return min(n, current) }, -1)
}

// choose is how far one of the policies, the one that allows most or least, lets the number go; sign is the direction.
func (p *past) choose(current int32, r *autoscalingv2.HPAScalingRules, now time.Time, allows func(int32, autoscalingv2.HPAScalingPolicy) int32, clamp func(int32) int32, sign int32) int32 {
	chosen := ptr.Deref(r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if chosen == autoscalingv2.DisabledPolicySelect || len(r.Policies) == 0 {
		return current
	}
	var best int32
	for i, policy := range r.Policies {
		n := allows(p.since(current, policy.PeriodSeconds, now), policy)
		if further := (n-best)*sign > 0; i == 0 || further == (chosen == autoscalingv2.MaxChangePolicySelect) {
			best = n
		}
	}
	return clamp(best)
}
