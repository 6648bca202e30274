mod expression;
